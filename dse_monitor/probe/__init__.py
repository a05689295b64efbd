"""Dense quality with labels, the truth that DSE is compared with: linear and nearest-neighbour probes."""
