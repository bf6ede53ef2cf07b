"""The built-in agents, one module each. They see nothing but their Run."""
