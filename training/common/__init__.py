"""The torch-free ground that every package of the project stands on: errors, folders, console, allocator."""
