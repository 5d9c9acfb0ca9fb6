"""Small things that everybody uses: errors, lines and tables, JSON, hashes, sealed folders, the processes of a
run, names of models and files. It imports nothing of road_ds.
"""
