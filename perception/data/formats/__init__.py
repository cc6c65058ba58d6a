"""Readers of data set formats, one module per format. `perception.data.DATASETS` lists them."""
