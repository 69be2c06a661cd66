"""Virtual servers of the kernel's IP Virtual Server, over generic netlink."""
