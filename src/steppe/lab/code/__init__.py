"""Python files of users: found, read with what they import, told apart by content, loaded anew, brought along."""
