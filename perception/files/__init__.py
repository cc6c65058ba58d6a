"""Files as they are, trusted in nothing: images, JSON, XML, text, archives, and the cache of what was parsed."""
