"""Self-supervised trainers, sixteen methods on one engine, with inline DSE regularisation."""
