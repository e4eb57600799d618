# A static nginx, with the user of the image nginx. Debian's is too old: it lacks `resolve`.
FROM stand-in-base
RUN groupadd --gid 101 nginx && useradd --no-log-init --uid 101 --gid nginx --system nginx
COPY nginx /usr/sbin/nginx
STOPSIGNAL SIGQUIT
CMD ["nginx", "-p", "/tmp", "-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]
