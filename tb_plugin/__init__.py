"""The DSE tab of TensorBoard."""
