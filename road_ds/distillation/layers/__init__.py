"""The student's layers against a teacher's, a file for each family of methods. A new one: a class in a file here and a line in
registry.py. It imports config and models.
"""
