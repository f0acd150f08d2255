// A service for a gateway, by grpc-js: backend.js ADDRESS. It echoes, and stops in order on SIGTERM.
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const proto = path.join(process.cwd(), "proto");
const definition = loader.loadSync("shardgate/backend/v1/backend.proto", {
  includeDirs: [proto],
  keepCase: true,
  longs: String,
});
const { Backend } = grpc.loadPackageDefinition(definition).shardgate.backend.v1;

const server = new grpc.Server();
server.addService(Backend.service, {
  Handle: ({ request }, done) => {
    const responses = request.requests.map(({ request_id, payload }) => ({ request_id, payload }));
    done(null, { responses });
  },
});
server.bindAsync(process.argv[2], grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  console.log(`service ready: ${process.argv[2]}`);
});
process.on("SIGTERM", () => server.tryShutdown(() => process.exit(0)));
