"""From other libraries' names for the tensors of a network to timm's; one module per architecture family."""
