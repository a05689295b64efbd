"""One file per architecture family: tensor shapes in, a `Network` that timm can build out."""
