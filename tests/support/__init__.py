"""What tests share. A test module imports from here, from the code under test, and from no other test module."""
