"""Is a model read rightly? Identities that hold for every model, tried on the user's own."""
