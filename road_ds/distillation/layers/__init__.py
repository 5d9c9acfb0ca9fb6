"""Methods that compare the student's layers with a teacher's, a file for each family. Of this room, it imports nothing above."""
