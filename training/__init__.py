"""How the bundled model is made: the world it knows, the stages of its training, its measures.

Nothing here is imported by the service or its workers.
"""
