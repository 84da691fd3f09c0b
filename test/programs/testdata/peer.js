// A TLS server and client with the files of a volume.
//
//   node peer.js server DIRECTORY PORT
//   node peer.js client DIRECTORY PORT SERVER-NAME
'use strict';
const fs = require('fs');
const path = require('path');
const tls = require('tls');

// files returns the current files, which are all from the same renewal.
function files(directory) {
  const set = fs.realpathSync(path.join(directory, '..data'));
  const read = (name) => fs.readFileSync(path.join(set, name));
  return { cert: read('tls.crt'), key: read('tls.key'), ca: read('ca.crt') };
}

// useNewest makes a tls, https or http2 server use the newest files for each handshake.
function useNewest(server, directory) {
  let current;
  server.prependListener('connection', () => { // before the handshake
    try {
      const version = fs.readlinkSync(path.join(directory, '..data'));
      if (version !== current) {
        server.setSecureContext(files(directory));
        current = version;
      }
    } catch (err) {
      console.error('keeping the previous certificate:', err);
    }
  });
}

function serve(directory, port) {
  const options = { ...files(directory), requestCert: true, rejectUnauthorized: true };
  const server = tls.createServer(options, (socket) => {
    socket.on('error', (err) => console.error('connection:', err.message));
    socket.end(`hello ${socket.getPeerCertificate().subjectaltname}\n`);
  });
  server.on('tlsClientError', (err) => console.error('refused:', err.message));
  useNewest(server, directory);
  server.listen(port, '127.0.0.1');
}

function call(directory, port, name) {
  const socket = tls.connect({ ...files(directory), host: '127.0.0.1', port, servername: name }, () => {
    console.log('serial', socket.getPeerCertificate().serialNumber);
  });
  socket.on('data', (data) => process.stdout.write(data));
  socket.on('error', (err) => {
    console.error(err.message);
    process.exitCode = 1;
  });
}

const [mode, directory, port, name] = process.argv.slice(2);
if (mode === 'server') serve(directory, Number(port));
else call(directory, Number(port), name);
