"""kproxy's reports: metrics, status, Events, and the HTTP servers for them."""
