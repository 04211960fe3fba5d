"""The machine: meshes and shardings, processes, compiled programs."""
