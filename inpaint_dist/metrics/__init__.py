"""What torchmetrics does not give: buckets of hole ratio, intervals; and its learned metrics, one image at a time."""
