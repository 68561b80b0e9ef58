# SPDX-License-Identifier: Apache-2.0
"""GLSL of the renderer (see render.py for what the passes do)."""

from __future__ import annotations

SCENE_VERTEX = """
#version 330
uniform mat4 model;
uniform mat3 normals;        // inverse transpose of the model's rotation and scale
uniform vec3 scale;          // of the model
uniform mat4 world_to_clip;
in vec3 in_position;
in vec3 in_normal;
in vec2 in_uv;
in vec3 in_colour;
in float in_emission;
in float in_layer;
centroid out vec3 place;        // in the world
centroid out vec3 normal;
centroid out vec3 own_place;    // in the mesh's frame, for the grain
centroid out vec2 uv;
centroid out vec3 colour;
flat out float emission;
flat out float layer;
void main() {
    vec4 world = model * vec4(in_position, 1.0);
    place = world.xyz;
    own_place = in_position * scale;
    normal = normals * in_normal;
    uv = in_uv;
    colour = in_colour;
    emission = in_emission;
    layer = in_layer;
    gl_Position = world_to_clip * world;
}
"""

# With CUTOUT defined, transparent texels are left out. Only the meshes that need it pay for it: a
# shader that can discard keeps the depth test from coming before the shading.
SCENE_FRAGMENT = """
const int MAX_LIGHTS = 6;
const int MAX_PANES = 8;
uniform sampler2DArray images;
uniform sampler2DShadow maps;
uniform vec3 eye;
uniform vec3 tint;
uniform float grain;
uniform float gloss;
uniform float first_layer;
uniform vec3 ambient_up;
uniform vec3 ambient_down;
uniform int light_count;
uniform vec3 light_position[MAX_LIGHTS];
uniform vec3 light_colour[MAX_LIGHTS];
uniform vec4 light_aim[MAX_LIGHTS];      // w: 1 for a window, 0 for a lamp
uniform int shadow_count;                // the first lights cast shadows
uniform mat4 shadow_clip[3];             // the last is the sun's
uniform int pane_count;                  // as they shine in floors: first those that sun comes by
uniform int clear_count;
uniform vec3 pane_centre[MAX_PANES];
uniform vec3 pane_across[MAX_PANES];     // halves of two sides
uniform vec3 pane_along[MAX_PANES];
uniform vec3 pane_light[MAX_PANES];
uniform vec3 to_sun;
uniform vec3 sun_colour;                 // black: no sun comes in
centroid in vec3 place;
centroid in vec3 normal;
centroid in vec3 own_place;
centroid in vec2 uv;
centroid in vec3 colour;
flat in float emission;
flat in float layer;
out vec4 radiance;

float lit_by(int map) {
    vec4 clip = shadow_clip[map] * vec4(place, 1.0);
    if (clip.w <= 0.0) return 1.0;
    vec3 at = clip.xyz / clip.w;         // of the sun w is 1
    if (abs(at.x) > 0.995 || abs(at.y) > 0.995) return 1.0;
    at = at * 0.5 + 0.5;
    at.z -= 0.0005;
    at.x = (at.x + float(map)) / 3.0;
    const float r = 0.7 / 1024.0;
    return 0.5 * (texture(maps, vec3(at.x - r / 3.0, at.y - r, at.z))
                + texture(maps, vec3(at.x + r / 3.0, at.y + r, at.z)));
}

// How much of a pane the ray from here towards `way` meets; `blur` metres of edge per metre of way.
float meets(int pane, vec3 way, float blur) {
    vec3 a = pane_across[pane], b = pane_along[pane];
    vec3 normal_to_it = cross(a, b);
    float slope = dot(way, normal_to_it);
    if (abs(slope) < 1e-6) return 0.0;
    float t = dot(pane_centre[pane] - place, normal_to_it) / slope;
    if (t <= 0.0) return 0.0;
    vec3 at = place + t * way - pane_centre[pane];
    float aa = dot(a, a), bb = dot(b, b);
    vec2 inside = 1.0 - abs(vec2(dot(at, a) / aa, dot(at, b) / bb));   // of half a side
    vec2 edge = 0.01 + blur * t * inversesqrt(vec2(aa, bb));
    vec2 share = clamp(0.5 + 0.5 * inside / edge, 0.0, 1.0);
    return share.x * share.y * min(1.0, 0.3 / (edge.x * edge.y));      // blurred: wider and dimmer
}

void main() {
    vec3 albedo = max(colour, 0.0);
    if (layer >= 0.0) {
        vec4 texel = texture(images, vec3(uv, layer + (layer >= 0.0 ? first_layer : 0.0)));
#ifdef CUTOUT
        if (texel.a < 0.5) discard;
#endif
        albedo *= texel.rgb;
    }
    // sRGB to linear light; a cubic is within 0.005 of the curve and far cheaper than pow.
    albedo *= (albedo * (albedo * 0.305306 + 0.682171) + 0.012523);
    albedo *= tint;
    if (emission > 0.0) {
        radiance = vec4(albedo * emission, 1.0);
        return;
    }
    vec3 to_eye = normalize(eye - place);
    vec3 n = dot(normal, normal) > 1e-8 ? normalize(normal) : to_eye;
    if (dot(n, to_eye) < 0.0) n = -n;
    if (grain > 0.0) {
        vec3 a = abs(n);
        vec2 at = a.z > max(a.x, a.y) ? own_place.xy : (a.x > a.y ? own_place.yz : own_place.xz);
        albedo *= 1.0 + grain * (texture(images, vec3(at * 1.7, 0.0)).r - 0.5);
    }
    vec3 sum = albedo * mix(ambient_down, ambient_up, n.z * 0.5 + 0.5);
    for (int i = 0; i < light_count; ++i) {
        vec3 to_light = light_position[i] - place;
        float square = dot(to_light, to_light);
        to_light *= inversesqrt(square);
        float facing = dot(n, to_light);
        float strength = light_aim[i].w > 0.5 ? max(-dot(to_light, light_aim[i].xyz), 0.0) : 1.0;
        strength /= square + 0.15;
        if (facing <= 0.0 || strength <= 0.0) continue;
        if (i < shadow_count) strength *= lit_by(i);
        float shine = 0.0;
        if (gloss > 0.0) {
            shine = max(dot(n, normalize(to_light + to_eye)), 0.0);
            for (int power = 0; power < 5; ++power) shine *= shine;      // to the 32nd
            shine *= gloss;
        }
        sum += (albedo * facing + shine) * strength * light_colour[i];
    }
    float in_sun = max(sun_colour.g, sun_colour.r) > 0.0 ? dot(n, to_sun) : 0.0;
    if (in_sun > 0.0) {
        float window = 0.0;
        for (int i = 0; i < clear_count; ++i) window = max(window, meets(i, to_sun, 0.008));
        if (window > 0.0) sum += albedo * in_sun * window * lit_by(2) * sun_colour;
    }
    if (gloss > 0.0) {
        // A varnish: what lies in the direction of reflection, by Schlick's share of it.
        vec3 way = reflect(-to_eye, n);
        float grazing = 1.0 - max(dot(n, to_eye), 0.0);
        float share = gloss * (0.07 + 0.7 * grazing * grazing * grazing * grazing);
        vec3 around = 0.7 * mix(ambient_down, ambient_up, way.z * 0.5 + 0.5);
        for (int i = 0; i < pane_count; ++i) {
            around += meets(i, way, 0.25 * (1.0 - 0.8 * gloss)) * pane_light[i];
        }
        sum = mix(sum, around, share);
    }
    radiance = vec4(sum, 1.0);
}
"""

SHADOW_VERTEX = """
#version 330
uniform mat4 model_to_clip;
in vec3 in_position;
void main() { gl_Position = model_to_clip * vec4(in_position, 1.0); }
"""

SHADOW_FRAGMENT = """
#version 330
void main() {}
"""

FULLSCREEN_VERTEX = """
#version 330
in vec2 in_corner;
void main() { gl_Position = vec4(in_corner, 0.0, 1.0); }
"""

AVERAGE_FRAGMENT = """
#version 330
const int SAMPLES = 6;
uniform sampler2DMS fine_colour;
uniform sampler2DMS fine_depth;
uniform vec2 range;          // near, far
uniform vec4 intrinsics;     // of the output: fx, fy, cx, cy
layout(location = 0) out vec4 result;      // rgb radiance, z-depth
layout(location = 1) out float openness;   // 1: nothing near hides the light

// Inverse z-depth: linear over a plane, so averaging it is exact there.
float inverse_depth(float buffer) {
    float ndc = buffer * 2.0 - 1.0;
    return ((range.y + range.x) - ndc * (range.y - range.x)) / (2.0 * range.x * range.y);
}

vec3 at(vec2 pixel, float z) {
    return vec3((pixel - intrinsics.zw) / intrinsics.xy, 1.0) * z;
}

void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy);
    vec3 colour = 0.25 * (texelFetch(fine_colour, pixel, 0).rgb
                        + texelFetch(fine_colour, pixel, 1).rgb
                        + texelFetch(fine_colour, pixel, 2).rgb
                        + texelFetch(fine_colour, pixel, 3).rgb);
    float a = inverse_depth(texelFetch(fine_depth, pixel, 0).r);
    float b = inverse_depth(texelFetch(fine_depth, pixel, 1).r);
    float c = inverse_depth(texelFetch(fine_depth, pixel, 2).r);
    float d = inverse_depth(texelFetch(fine_depth, pixel, 3).r);
    float high = max(max(a, b), max(c, d));
    float low = min(min(a, b), min(c, d));
    float mean = 0.25 * (a + b + c + d);
    // Across an edge no mean is right: take the nearer side if it covers half of the pixel.
    float inverse = mean;
    if (high > 1.05 * low) {
        float upper = max(min(a, b), min(c, d));
        float other = min(max(a, b), max(c, d));
        inverse = max(upper, other);             // the second nearest of the four
    }
    float z = 1.0 / inverse;

    result = vec4(colour, z);

    vec3 here = at(vec2(pixel), z);
    vec3 n = cross(dFdy(here), dFdx(here));
    n = dot(n, n) > 0.0 ? normalize(n) : vec3(0.0, 0.0, -1.0);
    if (dot(n, here) > 0.0) n = -n;
    float reach = min(0.3 * intrinsics.x / z, 0.15 * intrinsics.x);    // pixels for 30 cm
    ivec2 last = textureSize(fine_depth) - 1;
    // Sixteen rotations in a 4x4 pattern, which the next pass averages away.
    float turn = float((pixel.x & 3) * 4 + (pixel.y & 3) * 9) * 0.3927;
    float hidden = 0.0;
    for (int i = 0; i < SAMPLES; ++i) {
        float angle = turn + 2.4 * float(i);
        vec2 offset = vec2(cos(angle), sin(angle)) * reach * (float(i) + 0.7) / float(SAMPLES);
        ivec2 where = clamp(ivec2(vec2(pixel) + 0.5 + offset), ivec2(0), last);
        float there = 1.0 / inverse_depth(texelFetch(fine_depth, where, 0).r);
        vec3 to = at(vec2(where), there) - here;
        float square = dot(to, to);
        hidden += max(dot(to, n) * inversesqrt(square + 1e-4) - 0.12, 0.0)
                * (1.0 - smoothstep(0.02, 0.16, square));
    }
    openness = clamp(1.0 - 1.3 * hidden / float(SAMPLES), 0.3, 1.0);
}
"""

SOFTEN_FRAGMENT = """
#version 330
uniform sampler2D averaged;  // rgb radiance, z-depth
uniform sampler2D openness;
out vec4 result;
void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy);
    ivec2 last = textureSize(averaged, 0) - 1;
    vec4 here = texelFetch(averaged, pixel, 0);
    float sum = 0.0, weights = 0.0;
    for (int y = -2; y < 2; ++y) for (int x = -2; x < 2; ++x) {
        ivec2 where = clamp(pixel + ivec2(x, y), ivec2(0), last);
        float z = texelFetch(averaged, where, 0).a;
        float weight = exp(-20.0 * abs(z - here.a) / here.a);
        sum += weight * texelFetch(openness, where, 0).r;
        weights += weight;
    }
    result = vec4(here.rgb * (sum / weights), here.a);
}
"""
