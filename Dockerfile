# transplice in a container. To build it: docker build -t transplice .
# Beyond the base image it needs npm's registry alone. Its configuration is variables (TRANSPLICE_...), or
# a file at /etc/transplice.toml. With nftables for the rules, which takes Debian's packages, too:
# docker build --target firewall -t transplice:firewall .
ARG NODE=node:22-bookworm-slim

FROM ${NODE} AS build
WORKDIR /build
COPY package.json package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY tsconfig.json ./
COPY native-bindings native-bindings
COPY src src
RUN npm run build && npm prune --omit=dev --no-audit --no-fund

FROM ${NODE} AS program
COPY --from=build /build/package.json /opt/transplice/package.json
COPY --from=build /build/node_modules /opt/transplice/node_modules
COPY --from=build /build/dist /opt/transplice/dist
COPY page /opt/transplice/page
RUN chmod 755 /opt/transplice/dist/src/main.js && ln -s /opt/transplice/dist/src/main.js /usr/local/bin/transplice && install -d -o 10810 -g 10810 /run/transplice
USER 10810:10810
STOPSIGNAL SIGTERM
# The pid file is written when it serves.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD kill -0 "$(cat /run/transplice/transplice.pid)"
ENTRYPOINT ["transplice"]

FROM program AS firewall
USER 0:0
RUN apt-get update -q && apt-get install -y -q --no-install-recommends nftables && rm -rf /var/lib/apt/lists/*

# Without a target, this one is built.
FROM program
