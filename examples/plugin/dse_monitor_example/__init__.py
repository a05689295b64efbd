"""An example of a plugin for dse-monitor; each module is one extension."""
