"""The method: foreground from clustered keys at three levels that are made to agree, and classes."""
