"""A guest book: entries in SQLite, each with a file in `uploads`. Only Python's own library.

    python3 app.py PORT
"""

import http.server
import os
import sqlite3
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
UPLOADS = os.path.join(HERE, "uploads")


def database():
    connection = sqlite3.connect(os.path.join(HERE, "guests.db"), timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS guests (id INTEGER PRIMARY KEY, words TEXT)")
    return connection


class Book(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        connection = database()
        rows = connection.execute("SELECT id, words FROM guests ORDER BY id").fetchall()
        connection.close()
        lines = []
        for number, words in rows:
            with open(os.path.join(UPLOADS, f"{number}.txt")) as file:
                assert file.read() == words
            lines.append(f"{number}: {words}\n")
        self.answer("".join(lines))

    def do_POST(self):
        words = self.rfile.read(int(self.headers["Content-Length"])).decode()
        connection = database()
        with connection:
            number = connection.execute("INSERT INTO guests (words) VALUES (?)", (words,)).lastrowid
            with open(os.path.join(UPLOADS, f"{number}.txt"), "w") as file:
                file.write(words)
        connection.close()
        self.answer(f"thank you, guest {number}\n")

    def answer(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    os.makedirs(UPLOADS, exist_ok=True)
    database().close()
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Book).serve_forever()
