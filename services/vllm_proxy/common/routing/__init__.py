"""Where a request goes: the routing table as edges hold it, and the policies that choose among its hosts."""
