"""Files as they are, trusted in nothing: pictures, JSON, XML, text, archives, and the cache of what was parsed."""
