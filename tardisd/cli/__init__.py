"""The commands `tardisd` and `tardisctl`."""
