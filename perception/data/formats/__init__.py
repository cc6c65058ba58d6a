"""The readers: one file = one format, beside the files that it needs; `perception.data.DATASETS` names them."""
