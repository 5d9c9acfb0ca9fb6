"""One JSON file as settings: the road block, DeepSpeed's part, what is filled in, and the catalog of data sets
(catalog.json). It imports common.
"""
