"""The policy every checkpoint starts from: taken as a folder or a hub id, or made by the embedded
recipe.
"""
