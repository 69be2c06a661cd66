"""What kproxy reports of itself: metrics, status, Events, and the HTTP servers for them."""
