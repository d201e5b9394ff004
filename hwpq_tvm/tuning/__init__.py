"""The autotune job of one device: tasks out of a model, search, building, measuring, records that ship."""
