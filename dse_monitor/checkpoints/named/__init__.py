"""Networks built by name: any of timm's, and the vision networks of transformers.

A family knows a network from the shapes of its tensors; here a name does: one that the user gives, or that
the file or its config.json records. The library that defines the name builds the network, its own tensor
names say where in the file it is, and a forward pass without numbers says what its output is. A name counts
only if every tensor of the network is in the file, in its shape. No module here imports torch, timm or
transformers before a network is built.
"""
