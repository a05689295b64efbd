"""One checkpoint measured: images, tokens, components, feature maps."""
