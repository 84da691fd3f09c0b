"""A TLS server and client with the files of a volume.

python3 peer.py server DIRECTORY PORT
python3 peer.py client DIRECTORY PORT SERVER-NAME
"""

import os
import socket
import ssl
import sys
import threading


def context(directory, purpose):
    """Return a context with the current files, which are all from the same renewal."""
    files = os.path.realpath(os.path.join(directory, "..data"))
    c = ssl.create_default_context(purpose, cafile=os.path.join(files, "ca.crt"))
    c.load_cert_chain(os.path.join(files, "tls.crt"), os.path.join(files, "tls.key"))
    c.verify_mode = ssl.CERT_REQUIRED
    return c


def server_context(directory):
    """Return a context for servers that uses the newest files for each handshake."""
    link = os.path.join(directory, "..data")
    current = os.readlink(link), context(directory, ssl.Purpose.CLIENT_AUTH)

    def use_newest(connection, server_name, first):
        nonlocal current
        try:
            version = os.readlink(link)
            if version != current[0]:
                current = version, context(directory, ssl.Purpose.CLIENT_AUTH)
        except OSError as err:  # ssl.SSLError is an OSError
            print("keeping the previous certificate:", err, file=sys.stderr)
        connection.context = current[1]

    c = context(directory, ssl.Purpose.CLIENT_AUTH)
    c.sni_callback = use_newest  # also called for clients that send no server name
    c.minimum_version = ssl.TLSVersion.TLSv1_3
    c.num_tickets = 0  # no resumed sessions, which do not check certificates again
    return c


def greet(connection, tls):
    try:
        with tls.wrap_socket(connection, server_side=True) as secure:
            names = [name for _, name in secure.getpeercert()["subjectAltName"]]
            secure.sendall(f"hello {' '.join(names)}\n".encode())
            secure.unwrap()  # sends close_notify
    except OSError as err:
        print("refused:", err, file=sys.stderr)


def serve(directory, port):
    tls = server_context(directory)
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=greet, args=(connection, tls), daemon=True).start()


def call(directory, port, name):
    tls = context(directory, ssl.Purpose.SERVER_AUTH)  # a new one for each connection
    with socket.create_connection(("127.0.0.1", port)) as connection:
        with tls.wrap_socket(connection, server_hostname=name) as secure:
            print(secure.makefile().readline(), end="")
            print("serial", secure.getpeercert()["serialNumber"])


if sys.argv[1] == "server":
    serve(sys.argv[2], int(sys.argv[3]))
else:
    call(sys.argv[2], int(sys.argv[3]), sys.argv[4])
