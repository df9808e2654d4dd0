"""From photos and masks to batches: drawing, reading, packing, ordering, loading."""
