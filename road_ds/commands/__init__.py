"""What `python -m road_ds` does beside training, a file per command. It imports every room; nothing but __main__
imports it.
"""
