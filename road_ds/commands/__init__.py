"""The commands beside training, a file each; they may import every other room, and nothing but `__main__` imports them."""
