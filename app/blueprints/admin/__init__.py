"""The admin surface (admin-api.md): one blueprint per noun under one prefix."""
