"""Starting and stopping processes: supervisor (fluid serve), embedded_valkey, subprocesses."""
