// SPDX-License-Identifier: Apache-2.0

//go:build !purego

// AES-256-GCM (NIST SP 800-38D) four blocks to an instruction: VAES and VPCLMULQDQ on 512-bit registers.
//
// Counter mode works on 16 blocks at a time. GHASH sums the products of 16 blocks and 16 powers of H before it reduces
// once (Gueron and Kounavis, "Intel Carry-Less Multiplication Instruction and its Usage for Computing the GCM Mode").
//
// A block's bytes are turned round, so that bit 127-k of the register is the coefficient of x^k. The product of two such
// numbers has 255 bits, one too few: it would have to be shifted left by one. The powers are kept as H^i / x instead,
// which makes the same difference once and not for each product. What is 128 bits too long is folded in two steps of 64,
// by x^128 = x^7 + x^2 + x + 1, whose reflection is the constant poly (x^128 itself is the swap of the halves).
//
// No branch and no address depends on anything but lengths.

#include "textflag.h"

// turn reverses the bytes of a block.
DATA turn<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA turn<>+8(SB)/8, $0x0001020304050607
GLOBL turn<>(SB), NOPTR|RODATA, $16

// counterTurn reverses the last four bytes of a block: a counter that was added to becomes big-endian.
DATA counterTurn<>+0(SB)/8, $0x0706050403020100
DATA counterTurn<>+8(SB)/8, $0x0c0d0e0f0b0a0908
GLOBL counterTurn<>(SB), NOPTR|RODATA, $16

// first are the steps from counter 1 to those of the first four blocks of data: 2, 3, 4, 5.
DATA first<>+0(SB)/8, $0
DATA first<>+8(SB)/8, $0x0000000100000000
DATA first<>+16(SB)/8, $0
DATA first<>+24(SB)/8, $0x0000000200000000
DATA first<>+32(SB)/8, $0
DATA first<>+40(SB)/8, $0x0000000300000000
DATA first<>+48(SB)/8, $0
DATA first<>+56(SB)/8, $0x0000000400000000
GLOBL first<>(SB), NOPTR|RODATA, $64

// four is the step from each block's counter to that of the block four further on.
DATA four<>+0(SB)/8, $0
DATA four<>+8(SB)/8, $0x0000000400000000
GLOBL four<>(SB), NOPTR|RODATA, $16

DATA poly<>+0(SB)/8, $0xc200000000000000
DATA poly<>+8(SB)/8, $0
GLOBL poly<>(SB), NOPTR|RODATA, $16

// Registers, the same throughout:
//
//	AX  powers of H       Z0-Z3    blocks in counter mode     Z11      poly
//	BX  message           Z4       blocks to be hashed        Z12      the hash so far
//	DI  destination       Z5, Z6   for the moment             Z13-Z15  turn, counterTurn, four
//	SI  source            Z7       powers of H                Z16-Z30  round keys
//	CX  bytes left        Z8-Z10   sums: low, high, middle    Z31      counters
//
// The fields of key and message are in wide_amd64.go.
#define POWERS 240
#define COUNTER 0
#define ASSOCIATED 16
#define LENGTHS 32
#define TAG 48

#define EACH(instruction, operand) \
	instruction operand, Z0, Z0; \
	instruction operand, Z1, Z1; \
	instruction operand, Z2, Z2; \
	instruction operand, Z3, Z3

#define NEXT_COUNTERS(block) \
	VPSHUFB Z14, Z31, block; \
	VPADDD  Z15, Z31, Z31

#define START_16_BLOCKS \
	NEXT_COUNTERS(Z0); \
	NEXT_COUNTERS(Z1); \
	NEXT_COUNTERS(Z2); \
	NEXT_COUNTERS(Z3); \
	EACH(VPXORD, Z16)

// The last round adds its key; the text is added to the key before.
#define FINISH(block, offset) \
	VPXORD      offset(SI), Z30, Z5; \
	VAESENCLAST Z5, block, block

#define FINISH_16_BLOCKS \
	FINISH(Z0, 0); \
	FINISH(Z1, 64); \
	FINISH(Z2, 128); \
	FINISH(Z3, 192)

#define STORE_16_BLOCKS \
	VMOVDQU64 Z0, 0(DI); \
	VMOVDQU64 Z1, 64(DI); \
	VMOVDQU64 Z2, 128(DI); \
	VMOVDQU64 Z3, 192(DI)

// MULTIPLY_FIRST begins the sums with the product of Z4 and Z7, MULTIPLY adds to them.
#define MULTIPLY_FIRST \
	VPCLMULQDQ $0x00, Z7, Z4, Z8; \
	VPCLMULQDQ $0x11, Z7, Z4, Z9; \
	VPCLMULQDQ $0x01, Z7, Z4, Z10; \
	VPCLMULQDQ $0x10, Z7, Z4, Z6; \
	VPXORD     Z6, Z10, Z10

#define MULTIPLY \
	VPCLMULQDQ $0x00, Z7, Z4, Z6; \
	VPXORD     Z6, Z8, Z8; \
	VPCLMULQDQ $0x11, Z7, Z4, Z6; \
	VPXORD     Z6, Z9, Z9; \
	VPCLMULQDQ $0x01, Z7, Z4, Z5; \
	VPCLMULQDQ $0x10, Z7, Z4, Z6; \
	VPTERNLOGD $0x96, Z5, Z6, Z10

// HASH multiplies four blocks of ciphertext, HASH_FIRST the first four of 16, to which the hash so far is added.
#define HASH_FIRST(offset, from) \
	VMOVDQU64 offset(from), Z4; \
	VMOVDQU64 (16+offset)(AX), Z7; \
	VPSHUFB   Z13, Z4, Z4; \
	VPXORD    Z12, Z4, Z4; \
	MULTIPLY_FIRST

#define HASH(offset, from) \
	VMOVDQU64 (64+offset)(from), Z4; \
	VMOVDQU64 (80+offset)(AX), Z7; \
	VPSHUFB   Z13, Z4, Z4; \
	MULTIPLY

// REDUCE folds the sums to 128 bits in each of four lanes, and adds the lanes up: the hash so far.
#define REDUCE \
	VPCLMULQDQ    $0x00, Z11, Z8, Z5; \
	VPSHUFD       $0x4e, Z8, Z8; \
	VPTERNLOGD    $0x96, Z5, Z8, Z10; \
	VPCLMULQDQ    $0x00, Z11, Z10, Z5; \
	VPSHUFD       $0x4e, Z10, Z10; \
	VPTERNLOGD    $0x96, Z5, Z10, Z9; \
	VEXTRACTI64X4 $1, Z9, Y5; \
	VPXORD        Y5, Y9, Y5; \
	VEXTRACTI128  $1, Y5, X12; \
	VPXOR         X5, X12, X12

// ENCRYPT_AND_HASH leaves the other side of the 16 blocks at SI in Z0-Z3, and hashes 16 blocks of ciphertext meanwhile.
#define ENCRYPT_AND_HASH(from) \
	START_16_BLOCKS; \
	HASH_FIRST(0, from); \
	EACH(VAESENC, Z17); \
	EACH(VAESENC, Z18); \
	EACH(VAESENC, Z19); \
	HASH(0, from); \
	EACH(VAESENC, Z20); \
	EACH(VAESENC, Z21); \
	EACH(VAESENC, Z22); \
	HASH(64, from); \
	EACH(VAESENC, Z23); \
	EACH(VAESENC, Z24); \
	EACH(VAESENC, Z25); \
	HASH(128, from); \
	EACH(VAESENC, Z26); \
	EACH(VAESENC, Z27); \
	EACH(VAESENC, Z28); \
	EACH(VAESENC, Z29); \
	REDUCE; \
	FINISH_16_BLOCKS

// BEGIN loads what is constant, encrypts the counter that hides the tag, and hashes the associated data.
#define BEGIN \
	MOVQ            k+0(FP), AX; \
	MOVQ            m+8(FP), BX; \
	MOVQ            dst+16(FP), DI; \
	MOVQ            src+24(FP), SI; \
	MOVQ            n+32(FP), CX; \
	VBROADCASTI32X4 turn<>(SB), Z13; \
	VBROADCASTI32X4 counterTurn<>(SB), Z14; \
	VBROADCASTI32X4 four<>(SB), Z15; \
	VBROADCASTI32X4 0(AX), Z16; \
	VBROADCASTI32X4 16(AX), Z17; \
	VBROADCASTI32X4 32(AX), Z18; \
	VBROADCASTI32X4 48(AX), Z19; \
	VBROADCASTI32X4 64(AX), Z20; \
	VBROADCASTI32X4 80(AX), Z21; \
	VBROADCASTI32X4 96(AX), Z22; \
	VBROADCASTI32X4 112(AX), Z23; \
	VBROADCASTI32X4 128(AX), Z24; \
	VBROADCASTI32X4 144(AX), Z25; \
	VBROADCASTI32X4 160(AX), Z26; \
	VBROADCASTI32X4 176(AX), Z27; \
	VBROADCASTI32X4 192(AX), Z28; \
	VBROADCASTI32X4 208(AX), Z29; \
	VBROADCASTI32X4 224(AX), Z30; \
	ADDQ            $POWERS, AX; \
	VBROADCASTI32X4 COUNTER(BX), Z31; \
	VPSHUFB         X14, X31, X0; \
	VPADDD          first<>(SB), Z31, Z31; \
	VPXORD          X16, X0, X0; \
	VAESENC         X17, X0, X0; \
	VAESENC         X18, X0, X0; \
	VAESENC         X19, X0, X0; \
	VAESENC         X20, X0, X0; \
	VAESENC         X21, X0, X0; \
	VAESENC         X22, X0, X0; \
	VAESENC         X23, X0, X0; \
	VAESENC         X24, X0, X0; \
	VAESENC         X25, X0, X0; \
	VAESENC         X26, X0, X0; \
	VAESENC         X27, X0, X0; \
	VAESENC         X28, X0, X0; \
	VAESENC         X29, X0, X0; \
	VAESENCLAST     X30, X0, X0; \
	VMOVDQU         X0, TAG(BX); \
	VMOVDQU         poly<>(SB), X11; \
	VBROADCASTI32X4 poly<>(SB), Z11; \
	VMOVDQU         ASSOCIATED(BX), X4; \
	VPSHUFB         X13, X4, X4; \
	VMOVDQU         256(AX), X7; \
	MULTIPLY_FIRST; \
	REDUCE

// REST_BEGIN prepares the blocks that are fewer than 16: the power of the first is by one more than their number, since the
// lengths come last. Sums are empty; registers beyond the blocks hold zeros, so their powers don't matter.
#define REST_BEGIN \
	MOVQ   $15, DX; \
	ADDQ   CX, DX; \
	SHRQ   $4, DX; \
	MOVQ   $16, R8; \
	SUBQ   DX, R8; \
	SHLQ   $4, R8; \
	LEAQ   (AX)(R8*1), R9; \
	MOVQ   $-1, R10; \
	VPXORD Z8, Z8, Z8; \
	VPXORD Z9, Z9, Z9; \
	VPXORD Z10, Z10, Z10

// REST_KEYSTREAM makes the next four blocks of key stream in Z0, the mask of the bytes that are left in K1, and loads them as Z1.
#define REST_KEYSTREAM \
	BZHIQ       CX, R10, R11; \
	KMOVQ       R11, K1; \
	NEXT_COUNTERS(Z0); \
	VMOVDQU8.Z  (SI), K1, Z1; \
	VPXORD      Z16, Z0, Z0; \
	VAESENC     Z17, Z0, Z0; \
	VAESENC     Z18, Z0, Z0; \
	VAESENC     Z19, Z0, Z0; \
	VAESENC     Z20, Z0, Z0; \
	VAESENC     Z21, Z0, Z0; \
	VAESENC     Z22, Z0, Z0; \
	VAESENC     Z23, Z0, Z0; \
	VAESENC     Z24, Z0, Z0; \
	VAESENC     Z25, Z0, Z0; \
	VAESENC     Z26, Z0, Z0; \
	VAESENC     Z27, Z0, Z0; \
	VAESENC     Z28, Z0, Z0; \
	VAESENC     Z29, Z0, Z0; \
	VAESENCLAST Z30, Z0, Z0

// REST_HASH adds the product of the ciphertext in Z4 to the sums.
#define REST_HASH \
	VMOVDQU64 (R9), Z7; \
	VPSHUFB   Z13, Z4, Z4; \
	VPXORD    Z12, Z4, Z4; \
	VPXORD    Z12, Z12, Z12; \
	MULTIPLY; \
	ADDQ      $64, R9; \
	ADDQ      $64, SI; \
	ADDQ      $64, DI; \
	SUBQ      $64, CX

// END hashes the lengths, and writes the tag.
#define END \
	VMOVDQU LENGTHS(BX), X4; \
	VPSHUFB X13, X4, X4; \
	VPXORD  Z12, Z4, Z4; \
	VMOVDQU 256(AX), X7; \
	MULTIPLY; \
	REDUCE; \
	VPSHUFB X13, X12, X12; \
	VPXOR   TAG(BX), X12, X12; \
	VMOVDQU X12, TAG(BX); \
	VZEROUPPER

// func sealWide(k *key, m *message, dst, src *byte, n int)
TEXT ·sealWide(SB), NOSPLIT, $0-40
	BEGIN
	CMPQ CX, $256
	JB   rest

	START_16_BLOCKS
	EACH(VAESENC, Z17)
	EACH(VAESENC, Z18)
	EACH(VAESENC, Z19)
	EACH(VAESENC, Z20)
	EACH(VAESENC, Z21)
	EACH(VAESENC, Z22)
	EACH(VAESENC, Z23)
	EACH(VAESENC, Z24)
	EACH(VAESENC, Z25)
	EACH(VAESENC, Z26)
	EACH(VAESENC, Z27)
	EACH(VAESENC, Z28)
	EACH(VAESENC, Z29)
	FINISH_16_BLOCKS
	STORE_16_BLOCKS
	ADDQ $256, SI
	SUBQ $256, CX
	CMPQ CX, $256
	JB   last

	// Encrypts 16 blocks while it hashes the 16 before.
loop:
	ENCRYPT_AND_HASH(DI)
	ADDQ $256, DI
	STORE_16_BLOCKS
	ADDQ $256, SI
	SUBQ $256, CX
	CMPQ CX, $256
	JAE  loop

last:
	HASH_FIRST(0, DI)
	HASH(0, DI)
	HASH(64, DI)
	HASH(128, DI)
	REDUCE
	ADDQ $256, DI

rest:
	REST_BEGIN
	TESTQ CX, CX
	JZ    end

restLoop:
	REST_KEYSTREAM
	VPXORD     Z1, Z0, Z0
	VMOVDQU8   Z0, K1, (DI)
	VMOVDQU8.Z Z0, K1, Z4
	REST_HASH
	JA         restLoop

end:
	END
	RET

// func openWide(k *key, m *message, dst, src *byte, n int)
TEXT ·openWide(SB), NOSPLIT, $0-40
	BEGIN
	CMPQ CX, $256
	JB   rest

loop:
	ENCRYPT_AND_HASH(SI)
	STORE_16_BLOCKS
	ADDQ $256, DI
	ADDQ $256, SI
	SUBQ $256, CX
	CMPQ CX, $256
	JAE  loop

rest:
	REST_BEGIN
	TESTQ CX, CX
	JZ    end

restLoop:
	REST_KEYSTREAM
	VMOVDQA64 Z1, Z4
	VPXORD    Z1, Z0, Z0
	VMOVDQU8  Z0, K1, (DI)
	REST_HASH
	JA        restLoop

end:
	END
	RET

// EVEN makes an even round key of X1 (two before) and X2 (one before): FIPS 197, 5.2, with the round's constant.
#define CHAIN(key) \
	VPSLLDQ $4, key, X4; \
	VPXOR   X4, key, key; \
	VPSLLDQ $4, X4, X4; \
	VPXOR   X4, key, key; \
	VPSLLDQ $4, X4, X4; \
	VPXOR   X4, key, key; \
	VPXOR   X3, key, key

#define EVEN(constant, offset) \
	VAESKEYGENASSIST $constant, X2, X3; \
	VPSHUFD          $0xff, X3, X3; \
	CHAIN(X1); \
	VMOVDQU          X1, offset(DI)

#define ODD(offset) \
	VAESKEYGENASSIST $0, X1, X3; \
	VPSHUFD          $0xaa, X3, X3; \
	CHAIN(X2); \
	VMOVDQU          X2, offset(DI)

// func expandKey(secret *[32]byte, rounds *[240]byte)
TEXT ·expandKey(SB), NOSPLIT, $0-16
	MOVQ    secret+0(FP), SI
	MOVQ    rounds+8(FP), DI
	VMOVDQU 0(SI), X1
	VMOVDQU 16(SI), X2
	VMOVDQU X1, 0(DI)
	VMOVDQU X2, 16(DI)
	EVEN(0x01, 32)
	ODD(48)
	EVEN(0x02, 64)
	ODD(80)
	EVEN(0x04, 96)
	ODD(112)
	EVEN(0x08, 128)
	ODD(144)
	EVEN(0x10, 160)
	ODD(176)
	EVEN(0x20, 192)
	ODD(208)
	EVEN(0x40, 224)
	VPXOR   X1, X1, X1
	VPXOR   X2, X2, X2
	VPXOR   X3, X3, X3
	VPXOR   X4, X4, X4
	RET
