"""NetworkPolicies judged by packets: a table of cases, random histories, and changes under traffic."""
