"""Where jobs run, behind the interface of `concurrent.futures.Executor`."""
