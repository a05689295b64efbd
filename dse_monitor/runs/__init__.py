"""What a run's folder holds, and how it is read and written: records, series, ledger, lock, tables."""
