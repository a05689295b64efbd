"""Options that the command line leaves out: where they are looked for, and which of them holds."""
