"""Files to start from: a plug-in of any family, or a recipe folder that runs as it is.

``templates/plugins/FAMILY.py.txt`` is a plug-in named ``my_plugin``, ``templates/recipe/`` the files of a recipe.
"""
