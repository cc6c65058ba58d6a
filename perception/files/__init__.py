"""Safe reading of untrusted files: images, JSON, XML, text, archives; and the cache of parsed label files."""
