"""Layers: functions of arrays, and small Linen modules. No mesh, no device, no checkpoint name."""
