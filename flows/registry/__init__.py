"""The champion: manifest, store, drift, snapshots."""
