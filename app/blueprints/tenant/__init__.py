"""The tenant surface (tenant-api.md): one blueprint per noun under one prefix."""
