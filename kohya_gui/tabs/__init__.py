"""The tabs of the page. A tab is built inside `gr.Tab` and gets what it needs as one `Services` object."""
